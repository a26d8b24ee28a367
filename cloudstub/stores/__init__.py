"""Where data rests: machine data (`series`) and everything about gateways (`platform`), in separate databases."""
