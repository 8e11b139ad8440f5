"""`cloister demo cryptonn`: the paper's steps with the functions that do them."""

import json


def test_the_steps_are_printed(cloister):
    ran = cloister("demo", "cryptonn", "--scheme", "mask")
    assert ran.code == 0, ran
    assert "published.mask.decrypt_elements" in ran.out
    assert "training.products.Products.gradient" in ran.out
    assert "P - Y" in ran.out
    assert "values from ciphertexts are those of plain integers" in ran.out
    assert "The server learned every sample and every label" in ran.out


def test_the_papers_back_end_is_the_default(cloister, monkeypatch):
    monkeypatch.setattr("cloister.examples.cryptonn_demo.EPOCHS", 2)
    ran = cloister("demo", "cryptonn", "--json")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert found["scheme"] == "ddh"
    assert len(found["losses"]) == 2
    assert any(one["function"].startswith("cloister.published.ddh") for one in found["steps"])
    assert found["checked"] == 2 * 3 * 472 + 275


def test_other_schemes_are_refused(refused):
    assert "'paillier' is not one of" in refused("demo", "cryptonn", "--scheme", "paillier")
