"""The rows of the dashboards: each function makes the panels of one row."""

UID = "triojam-overview"
FLEET_UID = "triojam-fleet"
RUNBOOKS_UID = "triojam-runbooks"
