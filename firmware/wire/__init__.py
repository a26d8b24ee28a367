"""What crosses between gateway and cloud: topics, messages, and the block format."""
