"""Heads: what draws one token from its condition. The table of them is in `table`, the contract in `contract`."""
