"""Figures: functions from numbers to matplotlib or plotly figures."""
