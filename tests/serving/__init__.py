"""A client of the time port, from accept to close."""
