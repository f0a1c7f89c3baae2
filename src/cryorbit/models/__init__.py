"""A piece of nn meets a piece of physics."""
