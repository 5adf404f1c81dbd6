"""Continuous evolution: eight systems around one model that keeps itself current."""
