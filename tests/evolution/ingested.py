"""What a journal has taken in."""


def texts(journal):
    return [tuple(row) for row in journal.execute("SELECT text, label FROM records ORDER BY seq")]


def quarantine(journal):
    return [
        tuple(row) for row in journal.execute("SELECT place, reason FROM quarantine ORDER BY seq")
    ]
