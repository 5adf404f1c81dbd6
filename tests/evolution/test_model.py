"""A model of the loop: on disk, with more classes, calibrated."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_evolve.data.encoders import LatentWords, NGrams, Words
from lightning_evolve.errors import UsageError
from lightning_evolve.evolution.artifacts import Artifacts
from lightning_evolve.evolution.model import Model, _encoder
from lightning_evolve.evolution.pretrained import Pretrained
from lightning_evolve.learners import LSTM, Head, NGramHead
from tests.evolution.loops import BEFORE, texts

ROWS = texts(60, seed=1)
OTHERS = [*(text for text, _ in texts(300, seed=2)), "", "words never seen", "ünïcödé 你好"]
KINDS = {
    "lstm": (Words(min_frequency=1), partial(LSTM, hidden_size=8, embedding_size=8)),
    "ngrams": (NGrams(), NGramHead),
    "latent": (LatentWords(24), partial(Head, hidden_size=8)),
}


def made(kind):
    encoder, learner = KINDS[kind]
    model = Pretrained(encoder, learner).model([text for text, _ in ROWS], sorted(BEFORE), 0)
    source = torch.Generator().manual_seed(0)
    for p in model.learner.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=source)
    model.temperature = 1.7
    return model


@pytest.fixture(params=KINDS)
def model(request):
    return made(request.param)


@pytest.fixture
def store(tmp_path):
    return Artifacts(tmp_path / "artifacts")


def test_saved_and_loaded_predicts_the_same_bits(model, store):
    name = model.save(store)
    again = Model.load(store, name)
    ours, theirs = model.predict(OTHERS), again.predict(OTHERS)
    assert ours.probabilities.tobytes() == theirs.probabilities.tobytes()
    assert ours.features.tobytes() == theirs.features.tobytes()
    assert np.unique(ours.probabilities, axis=0).shape[0] > 200
    assert again.save(store) == name
    assert (again.classes, again.temperature, again.facts) == (
        model.classes,
        model.temperature,
        model.facts,
    )
    assert Model.parts(store, name) == {path.name for path in store.folder.glob("??/*")}


def test_no_texts(model):
    found = model.predict(["one"])
    assert found.probabilities.shape == (1, 4)
    assert found.features.shape[0] == 1
    empty = model.predict_encoded({n: t[:0] for n, t in model.encode(["one"]).items()})
    assert empty.probabilities.shape == (0, 4)


def test_more_classes_leave_what_is_said_of_the_old_ones(model):
    wider = model.knowing([*reversed(model.classes), "law", "music", "law"], seed=0)
    assert wider.classes == (*model.classes, "law", "music")
    inputs = model.encode(OTHERS)
    with torch.inference_mode():
        torch.testing.assert_close(wider.learner(**inputs)[:, :4], model.learner(**inputs))
    old = wider.predict_encoded(inputs).probabilities[:, :4]
    expected = model.predict_encoded(inputs).probabilities
    np.testing.assert_allclose(old / old.sum(1, keepdims=True), expected, atol=1e-5)
    assert model.classes == tuple(sorted(BEFORE))
    assert model.knowing(model.classes, 0) is model


def test_the_temperature_is_the_best_by_hand():
    model = made("latent")
    rows = texts(200, seed=3)
    inputs = model.encode([text for text, _ in rows])
    labels = torch.tensor([model.classes.index(label) for _, label in rows])
    found = model.calibrated(inputs, labels)
    with torch.no_grad():
        logits = model.learner(**inputs).double()
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    newton = torch.optim.LBFGS([inverse], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        newton.zero_grad()
        value = cross_entropy(logits * inverse, labels)
        value.backward()
        return value

    newton.step(loss)
    expected = min(max(1 / inverse.item(), 10**-1.3), 10**1.3)
    if inverse.item() <= 0:  # worse than chance: as flat as the grid allows
        expected = 10**1.3
    assert found.temperature == pytest.approx(expected, rel=0.06)  # a step of the grid
    assert found.temperature != 1
    p = found.predict_encoded(inputs).probabilities
    by_hand = (logits / found.temperature).softmax(1).numpy()
    np.testing.assert_allclose(p, by_hand, atol=1e-5)
    assert model.calibrated({n: t[:9] for n, t in inputs.items()}, labels[:9]).temperature == 1


def altered(store, name, change):
    saved = store.json(name)
    change(saved)
    return store.put_json(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update(format=99), "is in format 99 and this package reads 1: install"),
        (lambda s: s["learner"].update({"class": "Popen"}), "names the class 'Popen'"),
        (lambda s: s["encoder"].update({"class": "encode"}), "names the class 'encode'"),
        (lambda s: s["learner"].update(tensors="0" * 64 + ".safetensors"), "cannot be read"),
    ],
)
def test_another_model_than_ours(store, change, said):
    name = altered(store, made("latent").save(store), change)
    with pytest.raises(UsageError, match=said) as told:
        Model.load(store, name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"\0" + b[1:], lambda b: b""])
def test_a_damaged_artifact(store, damage):
    name = made("latent").save(store)
    for part in Model.parts(store, name):
        path = store.path(part)
        content = path.read_bytes()
        path.write_bytes(damage(content))
        _encoder.cache_clear()  # one that has been read is not read again
        with pytest.raises(UsageError, match=r"is damaged.*restore it from a copy"):
            Model.load(store, name)
        path.write_bytes(content)
    assert Model.load(store, name).classes == tuple(sorted(BEFORE))


def test_an_artifact_that_is_gone(store):
    name = made("latent").save(store)
    store.path(name).unlink()
    with pytest.raises(UsageError, match=r"cannot be read \(No such file"):
        Model.load(store, name)


def test_stores_no_code(store):
    made("latent").save(store)
    for path in store.folder.glob("??/*"):
        if path.suffix == ".json":
            json.loads(path.read_text())
        assert path.suffix in {".json", ".safetensors"}
