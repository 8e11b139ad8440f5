from cloister.base.hkdf import derive


def test_rfc5869_case_1():
    found = derive(
        bytes.fromhex("0b" * 22),
        info=bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"),
        length=42,
        salt=bytes.fromhex("000102030405060708090a0b0c"),
    )
    assert found.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_rfc5869_case_3_without_salt():
    found = derive(bytes.fromhex("0b" * 22), info=b"", length=42)
    assert found.hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_purposes_are_independent():
    keys = {derive(bytes(32), info=info) for info in (b"pads", b"store", b"wire")}
    assert len(keys) == 3
    assert all(len(key) == 32 for key in keys)
