"""The last net: secrets are taken out of errors and log lines, which may quote what others say."""

import re

SECRET_PARAMETER = re.compile(r"([?&][^=&\s]{0,29}(?:pass|secret|token)[^=&\s]{0,29}=)[^&\s]*", re.IGNORECASE)
_SECRETS = (
    # All lengths are bounded: who sends a long text must not make us search for long.
    # A password may hold an @ and a / of its own: all from the colon to the last @ of the word goes.
    (re.compile(r"(://[^\s:/@]{0,99}:)(?!PASSWORD@)\S{0,999}@"), r"\1***@"),
    (SECRET_PARAMETER, r"\1***"),
    # As libpq has it, and many others.
    (re.compile(r"\b((?:pass|Pass|PASS)[A-Za-z_]{0,99}\s?=\s?)(?:'[^']*'|\"[^\"]*\"|[^\s'\"]+)"), r"\1***"),
    (re.compile(r"(osk_[0-9a-f]{1,99})_[A-Za-z0-9_-]+"), r"\1_***"),
    (re.compile(r"(whsec_)[A-Za-z0-9+/=]+"), r"\1***"),
    (re.compile(r"(?<![A-Za-z0-9_.-])eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]+"), "***"),  # a JSON Web Token
    (re.compile(r"([Bb]earer\s)[A-Za-z0-9._~+/-]{12,}=*"), r"\1***"),
    (
        re.compile(r"-----BEGIN [A-Z ]{0,99}PRIVATE KEY.*?(?:END [A-Z ]{0,99}PRIVATE KEY-----|\Z)", re.DOTALL),
        "(a private key)",
    ),
)
_TELLTALES = ("://", "=", "osk_", "whsec_", "eyJ", "earer", "-----")
"""Text without any of these holds none of those."""


def redacted(text: str) -> str:
    """The text without what looks like a secret."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def may_hold_secret(text: str) -> bool:
    """False when `redacted` would change nothing, of JSON text too: 1 us, where searching a log line takes 15."""
    for each in _TELLTALES:  # noqa: SIM110 - `any` takes twice as long
        if each in text:
            return True
    return False
