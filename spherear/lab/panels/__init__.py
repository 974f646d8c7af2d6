"""The panels of `spherear.lab.widgets`, one a module, and the parts they share."""
