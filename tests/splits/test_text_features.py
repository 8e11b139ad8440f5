"""The features of the text networks: the same as scikit-learn's, from NumPy alone."""

import numpy as np
import pytest

from cloister.splits.text_features import NgramVectorizer, WordSequences

TEXT = "a the film plot was not good bad very dull fine it's one two scene end cat dog"
WORDS = tuple(TEXT.split())


def corpus(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, count)
    texts = []
    for label in labels:
        odds = np.ones(len(WORDS)) + label * (np.arange(len(WORDS)) % 3)
        chosen = rng.choice(WORDS, rng.integers(5, 30), p=odds / odds.sum())
        texts.append(" ".join(chosen).capitalize() + ".")
    return texts, labels.astype(np.int64)


def test_n_grams_are_those_of_scikit_learn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    selection = pytest.importorskip("sklearn.feature_selection")
    texts, labels = corpus(200, seed=1)
    others, _ = corpus(50, seed=2)
    others.append("unheard words only")
    others.append("")
    reference = text.TfidfVectorizer(ngram_range=(1, 2), min_df=2, dtype=np.float32)
    rows = reference.fit_transform(texts)
    chooser = selection.SelectKBest(selection.f_classif, k=60).fit(rows, labels)
    ours = NgramVectorizer(texts, labels, features=60)
    for given in (texts, others):
        wanted = chooser.transform(reference.transform(given)).toarray()
        found = ours(given)
        assert found.width == 60
        assert len(found) == len(given)
        dense = found.dense(np.arange(len(given)))
        # The order of the columns is a convention: the columns themselves are compared.
        np.testing.assert_allclose(
            np.sort(dense, axis=1), np.sort(wanted, axis=1), rtol=1e-5, atol=1e-6
        )
    dense = ours(texts).dense(np.arange(len(texts)))
    wanted = chooser.transform(reference.transform(texts)).toarray()
    np.testing.assert_allclose(_columns(dense), _columns(wanted), rtol=1e-5, atol=1e-6)


def _columns(rows):
    """The columns in an order that depends on their values alone."""
    return rows[:, np.lexsort(np.round(rows, 5))]


def test_n_grams_of_a_single_text_do_not_count():
    labels = np.array([0, 1, 0, 1])
    ours = NgramVectorizer(["good film", "bad film", "good plot", "bad plot"], labels, features=50)
    # Words occur twice, pairs once.
    assert np.count_nonzero(ours(["good film"]).dense(np.array([0]))) == 2


def test_sequences_end_with_the_last_words():
    texts = ["the film was good", "the film was bad", "the end"]
    rows = WordSequences(texts, words=100, length=3)(["The film, was good!", "the", "", "unheard"])
    assert rows.dtype == np.int32
    assert rows.shape == (4, 3)
    assert (rows[0] > 0).all()
    assert rows[1].tolist() == [0, 0, 1]
    assert not rows[2:].any()


def test_sequences_know_the_most_frequent_words():
    texts = ["a a a b b c", "b a"]
    assert WordSequences(texts, words=3, length=4)(["c b a"]).tolist() == [[0, 0, 2, 1]]
