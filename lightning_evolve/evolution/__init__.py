"""The loop of continuous evolution: a model that keeps itself current, one system a file."""
