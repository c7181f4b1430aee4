"""The command line of attnlstm: its commands, what they print, and the servers that they start.

Exit codes are the same for all commands: done, failed, wrong use, interrupted.
"""

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
