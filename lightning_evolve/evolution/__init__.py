"""The loop of continuous evolution: eight systems around one model that keeps itself current."""
