"""What a gateway boots: the overlay and kernel fragments that all builders share, and the builders."""
