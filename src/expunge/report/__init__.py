"""What was measured, for people: tables and figures. Figures need the extra `report`."""
