"""The command line: commands, how they print, and the server that a command may start."""
