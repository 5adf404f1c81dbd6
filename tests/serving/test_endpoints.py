from __future__ import annotations

import socket
import time

import pytest

from lightning_evolve import __version__
from lightning_evolve.evolution.artifacts import Artifacts
from lightning_evolve.evolution.feedback import FeedbackStore
from lightning_evolve.evolution.journal import Journal
from lightning_evolve.evolution.model import Model
from tests.serving.runs import CLASSES, HOSTILE
from tests.serving.servers import serving


@pytest.fixture(scope="module")
def store(run) -> FeedbackStore:
    return FeedbackStore(run / "service.sqlite")


def logged(store: FeedbackStore, identity: str):
    return next(p for p in store.predictions(limit=100_000) if p.id == identity)


def test_a_text_is_classified_as_the_champion_does_and_the_answer_is_kept(
    server, run, store
) -> None:
    text = "the team won the cup"
    got = server.predict(text)
    journal = Journal(run / "journal.sqlite")
    champion = Model.load(Artifacts(run / "artifacts"), journal.champion().model)
    expected = champion.predict([text]).probabilities[0]
    assert got["label"] == CLASSES[expected.argmax()]
    assert got["confidence"] == pytest.approx(expected.max(), abs=1e-5)
    assert got["champion"] == journal.champion().number
    assert got["probabilities"] == pytest.approx(
        dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-5
    )
    kept = logged(store, got["id"])
    assert (kept.text, kept.label, kept.generation) == (text, got["label"], got["champion"])


def test_several_texts_have_an_answer_each(server) -> None:
    texts = ["the team won", "shares fell", "odd and strange words"] * 20
    got = server.ask("POST", "/predict", {"texts": texts}).content
    assert [one["label"] for one in got] == list(CLASSES) * 20
    assert len({one["id"] for one in got}) == len(texts)
    assert isinstance(server.ask("POST", "/predict", {"texts": texts[:1]}).content, list)


def test_what_is_private_is_not_kept(server, store) -> None:
    got = server.predict("write to ann@example.org about the match")
    assert logged(store, got["id"]).text == "write to [EMAIL] about the match"


def test_a_text_is_read_as_those_that_were_learned_from(server) -> None:
    """The champion has learned from texts without addresses, and with composed letters."""
    for raw, learned in (
        ("the cup of ann@example.org  and\nthe team", "the cup of [EMAIL] and the team"),
        ("the cafe\u0301 of the team", "the caf\u00e9 of the team"),
    ):
        found, expected = (server.predict(text)["probabilities"] for text in (raw, learned))
        assert found == expected


def test_feedback_counts_once(server, store) -> None:
    identity = server.predict("the team won")["id"]
    body = {"id": identity, "label": "money", "source": "desk"}
    before = store.count("feedback")
    first, second = (server.ask("POST", "/feedback", body) for _ in range(2))
    assert (first.status, first.content["status"]) == (200, "accepted")
    assert (second.status, second.content["status"]) == (200, "repeated")
    changed = server.ask("POST", "/feedback", {**body, "label": HOSTILE})
    assert changed.content["status"] == "replaced"
    assert store.count("feedback") == before + 2


LONG = "a" * 10_001
BAD_BODIES = [
    ("/predict", b"", "the body is no JSON"),
    ("/predict", b"{", "the body is no JSON"),
    ("/predict", b"\xff\xfe", "the body is no JSON"),
    ("/predict", rb'{"text": "\ud800"}', "the body is no JSON"),
    ("/predict", [1], "no JSON object"),
    ("/predict", {}, 'give either "text" or "texts"'),
    ("/predict", {"text": "a", "texts": ["a"]}, 'give either "text" or "texts"'),
    ("/predict", {"text": 3}, '"text": input should be a valid string'),
    ("/predict", {"text": " \n"}, '"text" is blank'),
    ("/predict", {"text": LONG}, "at most 10000 characters"),
    ("/predict", {"texts": []}, "at least 1 item"),
    ("/predict", {"texts": ["a"] * 101}, "at most 100 items"),
    ("/predict", {"texts": ["a", None]}, '"texts[1]": input should be a valid string'),
    ("/predict", {"txt": "a"}, 'unknown key "txt"; did you mean "text"?'),
    ("/feedback", b"nothing", "the body is no JSON"),
    ("/feedback", {"label": "sport"}, '"id" is missing'),
    ("/feedback", {"id": 3, "label": "sport"}, '"id": input should be a valid string'),
    ("/feedback", {"id": "x", "label": ""}, '"label" is blank'),
    ("/feedback", {"id": "x", "label": "sport", "when": 3}, 'unknown key "when"'),
    ("/feedback", {"id": "x", "label": "sport", "source": "s" * 101}, "at most 100 characters"),
    ("/feedback", {"id": "x", "label": "sport", "source": "a\nb"}, "signs that cannot be printed"),
    ("/feedback", {"id": "x", "label": "sprot"}, "nearest are sport,"),
]


@pytest.mark.parametrize(("path", "body", "said"), BAD_BODIES)
def test_bad_bodies_are_told_in_a_sentence(server, path, body, said) -> None:
    got = server.ask("POST", path, body)
    assert got.status == 422
    assert list(got.content) == ["error"]
    assert said in got.content["error"]
    assert "\n" not in got.content["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/info", 404),
        ("POST", "/shutdown", 404),
        ("GET", "/predict", 405),
        ("DELETE", "/feedback", 405),
        ("POST", "/health", 405),
    ],
)
def test_what_there_is_not(server, method, path, status) -> None:
    got = server.ask(method, path)
    assert (got.status, list(got.content)) == (status, ["error"])


def test_feedback_on_a_prediction_that_never_was(server) -> None:
    got = server.ask("POST", "/feedback", {"id": "0" * 32, "label": "sport"})
    assert got.status == 404
    assert "0" * 32 in got.content["error"]


@pytest.mark.parametrize("path", ["/predict", "/feedback"])
def test_a_body_of_ten_megabytes(server, path) -> None:
    got = server.ask("POST", path, b'{"text": "' + b"a" * 10_000_000 + b'"}')
    assert got.status == 413
    assert "1,000,000 bytes" in got.content["error"]
    assert server.predict("the team won")["label"] == "sport"


def test_a_body_of_unknown_length_is_not_read_to_its_end(server) -> None:
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.setblocking(False)
        answer = b""
        connection.settimeout(20)
        for _ in range(1_001):  # no end is ever sent
            connection.sendall(b"400\r\n" + b"a" * 1024 + b"\r\n")
            sent += 1024
        while b"}" not in answer:
            answer += connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert sent < 1_100_000


def test_only_pages_of_this_machine_may_ask(server) -> None:
    for headers in (
        {"Origin": "http://example.org"},
        {"Host": "example.org"},
        {"Origin": "null"},
        {"Host": "["},
    ):
        assert server.ask("POST", "/predict", {"text": "a"}, **headers).status == 403
    at = f"127.0.0.1:{server.port}"
    own = server.ask("POST", "/predict", {"text": "a"}, Origin=f"http://{at}", Host=at)
    assert own.status == 200


def test_health(server) -> None:
    got = server.ask("GET", "/health").content
    assert got == {"ready": True, "champion": 2, "problem": None, "version": __version__}


def test_metrics(server) -> None:
    def value(line: str) -> float:
        text = server.ask("GET", "/metrics").content.decode()
        found = [one for one in text.splitlines() if one.startswith(f"lightning_evolve_{line} ")]
        return float(found[0].rpartition(" ")[2]) if found else 0.0

    names = [
        'requests_total{endpoint="/predict",status="200"}',
        'request_seconds_count{endpoint="/predict"}',
        'predictions_total{label="sport"}',
        'feedback_total{status="accepted"}',
        'rejected_total{reason="origin"}',
        'requests_total{endpoint="other",status="404"}',
    ]
    before = [value(name) for name in names]
    identity = server.predict("the team won")["id"]
    server.ask("POST", "/feedback", {"id": identity, "label": "sport"})
    server.ask("GET", "/health", Origin="http://example.org")
    server.ask("GET", "/whatever/else")
    assert [value(name) for name in names] == [number + 1 for number in before]
    assert value("champion_generation") == 2


def test_state(server, store) -> None:
    got = server.ask("GET", "/state").content
    assert got["classes"] == list(CLASSES)
    assert [g["verdict"] for g in got["generations"]] == ["founded", "promoted", "promoted"]
    assert got["generations"][2]["new_accuracy"] == pytest.approx(0.84)
    assert got["alarms"][0]["kind"] == "classes"
    assert got["predictions"] == store.count("predictions")


def test_the_page_asks_for_nothing_from_elsewhere(server) -> None:
    got = server.ask("GET", "/")
    page = got.content.decode()
    assert "default-src 'none'" in got.headers["Content-Security-Policy"]
    assert page.count("://") == page.count("http://www.w3.org/2000/svg")
    assert "innerHTML =" not in page


def test_a_token_and_a_rate(run) -> None:
    token = "0123456789abcdef"
    with serving(run, "--host=0.0.0.0", "--rate=2", token=token) as server:
        assert server.ask("GET", "/").status == 200  # the page asks for the token itself
        shown = {"Authorization": f"Bearer {token}"}
        for wrong in ({}, {"Authorization": "Bearer 0123456789abcdeg"}, {"Authorization": "é"}):
            got = server.ask("POST", "/predict", {"text": "a"}, **wrong)
            assert got.status in (401, 429)
            assert got.status == 429 or got.headers["WWW-Authenticate"] == "Bearer"
        answers = [server.ask("GET", "/health", **shown) for _ in range(8)]
        refused = [answer for answer in answers if answer.status == 429]
        assert refused
        assert "too many requests" in refused[0].content["error"]
        assert int(refused[0].headers["Retry-After"]) >= 1
        time.sleep(1.5)
        assert server.ask("GET", "/health", **shown).status == 200
