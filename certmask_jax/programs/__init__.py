"""The bodies of the commands; ``experiments`` and the installed command begin them."""
