"""The original code's checkpoints and configuration files."""
