"""The shell: one thin module per verb."""
