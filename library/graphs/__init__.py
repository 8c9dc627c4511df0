"""The tracing compiler: block functions to compiled programs and their gradients."""
