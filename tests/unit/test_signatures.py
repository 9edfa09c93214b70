"""Signatures of webhooks: the published example, what changes them, what is refused and why."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ordersys.core import signatures

# An example that the libraries of https://github.com/standard-webhooks/standard-webhooks agree on.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - known to everybody
ID, SECONDS, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

KEYS = signatures.secrets_of(SECRET)
OTHERS = signatures.secrets_of(f"whsec_{base64.b64encode(b'x' * 32).decode()}")


def refusal(**other: object) -> str:
    said = {"secrets": KEYS, "message_id": ID, "timestamp": str(SECONDS), "signature": SIGNATURE, "body": BODY}
    with pytest.raises(signatures.BadSignature) as refused:
        signatures.verify(**{"now": SECONDS, **said, **other})  # type: ignore[arg-type]
    return str(refused.value)


def test_the_published_example() -> None:
    assert signatures.headers(KEYS, ID, SECONDS, BODY) == {
        "webhook-id": ID,
        "webhook-timestamp": str(SECONDS),
        "webhook-signature": SIGNATURE,
    }
    signatures.verify(KEYS, ID, str(SECONDS), SIGNATURE, BODY, SECONDS)


@given(st.text(min_size=1), st.integers(0, 10**11), st.binary(), st.sampled_from([KEYS, OTHERS]))
def test_what_was_signed_is_good(message_id: str, seconds: int, body: bytes, keys: tuple[bytes, ...]) -> None:
    signed = signatures.headers(keys, message_id, seconds, body)["webhook-signature"]
    signatures.verify(keys, message_id, str(seconds), signed, body, seconds)


@pytest.mark.parametrize(
    "other",
    [
        {"body": BODY + b" "},
        {"message_id": "msg_another"},
        {"timestamp": str(SECONDS + 1)},
        {"signature": SIGNATURE.replace("g0hM", "g0hN")},
        {"secrets": OTHERS},
        {"secrets": ()},
    ],
)
def test_whatever_changes_the_signature_does_not_match(other: dict[str, object]) -> None:
    assert refusal(**other).startswith("the signature does not match")


def test_while_secrets_are_exchanged_both_sign_and_either_is_enough() -> None:
    both = signatures.secrets_of(f"{SECRET}, whsec_{base64.b64encode(b'x' * 32).decode()}")
    signed = signatures.headers(both, ID, SECONDS, BODY)["webhook-signature"]
    assert signed.split()[0] == SIGNATURE
    for keys in (KEYS, OTHERS, both):
        signatures.verify(keys, ID, str(SECONDS), signed, BODY, SECONDS)
    signatures.verify(both, ID, str(SECONDS), f"v1a,other {SIGNATURE}", BODY, SECONDS)


def test_the_timestamp_may_be_a_little_away_from_now() -> None:
    for now in (SECONDS - 300, SECONDS + 300):
        signatures.verify(KEYS, ID, str(SECONDS), SIGNATURE, BODY, now)
    assert refusal(now=SECONDS + 301) == "webhook-timestamp: the request is 301 s old, more than 300 s"
    assert refusal(now=SECONDS - 301).startswith(
        "webhook-timestamp: the request is 301 s ahead of this machine's clock"
    )
    assert refusal(now=SECONDS + 11, tolerance=10.5) == "webhook-timestamp: the request is 11 s old, more than 10.5 s"


@pytest.mark.parametrize("timestamp", ["", "soon", "-1", "1.5", "²", "9" * 13])
def test_a_timestamp_is_a_number_of_seconds(timestamp: str) -> None:
    assert "is not a number of seconds since the epoch" in refusal(timestamp=timestamp)


@pytest.mark.parametrize("signature", ["", "v2,abc", SIGNATURE.removeprefix("v1,")])
def test_a_signature_has_a_version(signature: str) -> None:
    assert refusal(signature=signature).startswith("webhook-signature: holds no signature of version v1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "whsec_abc",
        f"whsec_{base64.b64encode(b'x' * 23).decode()}",
        f"whsec_{base64.b64encode(b'x' * 65).decode()}",
        base64.b64encode(b"x" * 32).decode(),
        f"{SECRET},",
        f"whsec_{'é' * 32}",
    ],
)
def test_a_secret_is_long_enough_and_an_error_does_not_quote_it(text: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and the base64 of 24 to 64 random bytes") as refused:
        signatures.secrets_of(text)
    assert not text.removeprefix("whsec_") or text.removeprefix("whsec_") not in str(refused.value)
