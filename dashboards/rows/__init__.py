"""The rows of the overview: each function makes the panels of one row."""

UID = "triojam-overview"
RUNBOOKS_UID = "triojam-runbooks"
