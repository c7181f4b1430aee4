"""What an output says of itself to people and to other programs: its columns, its page, contracts."""
