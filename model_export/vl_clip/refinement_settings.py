"""The settings of the text refinement. Each is an environment variable: REFINE_ and the name in capitals.

Nothing is asked, and no network is touched, unless the command gets --refine and REFINE_URL is set.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import GlyphrecError

PREFIX = "REFINE_"


class RefinementSettings(BaseSettings):
    """Which server is asked, and how much."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", allow_inf_nan=False
    )

    url: str = Field(
        description="base URL of a server that speaks the OpenAI chat protocol, such as "
        "http://localhost:8001/v1. `/chat/completions` is added"
    )
    model: str = Field(min_length=1, description="name of a model that reads texts and pictures")
    key: SecretStr | None = Field(None, description="sent as a bearer token. Unset: nothing is sent")
    key_file: Path | None = Field(None, description="file that holds the key, in place of `key`")
    rounds: int = Field(5, ge=1, le=20, description="at most so many evaluations of an item, as in the paper")
    parallel: int = Field(4, ge=1, le=64, description="items at work at once")
    max_requests: int = Field(
        10_000, ge=1, description="requests of one run, with retries; answers from the cache cost none"
    )
    max_tokens: int = Field(
        10_000_000,
        ge=1,
        description="tokens of one run, questions and answers, as the server counts them. Requests that are "
        "under way when the last one is spent are still paid for",
    )
    answer_tokens: int = Field(300, ge=16, description="tokens of one answer")
    timeout_s: float = Field(60, gt=0, description="seconds to wait for one answer")
    retries: int = Field(4, ge=0, le=20, description="after a failed request, with growing pauses")
    max_pause_s: float = Field(
        60, ge=0, description="seconds of a pause. A server that asks for a longer one is given up on"
    )

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("is no address of HTTP. Write it with http:// or https://")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.key is not None and self.key_file is not None:
            raise ValueError("key and key_file are both set; leave one of them out")
        return self

    def secret(self) -> str | None:
        """The key. Raises GlyphrecError if its file cannot be read or is empty."""
        if self.key_file is None:
            return None if self.key is None else self.key.get_secret_value()
        try:
            found = self.key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise GlyphrecError(f"{PREFIX}KEY_FILE: {self.key_file} cannot be read ({error}).") from None
        if not found:
            raise GlyphrecError(f"{PREFIX}KEY_FILE: {self.key_file} is empty. Write the key into it.")
        return found


def refinement_settings() -> RefinementSettings:
    """The settings from the environment. Raises GlyphrecError with what is missing or wrong."""
    try:
        return RefinementSettings(**{})  # all of them come from the environment
    except ValidationError as error:
        reasons = []
        for detail in error.errors(include_input=False):
            name = str(detail["loc"][0]) if detail["loc"] else ""
            message = str(detail["msg"]).removeprefix("Value error, ")
            said = "not set" if detail["type"] == "missing" else message
            reasons.append(f"{PREFIX}{name.upper()}: {said}" if name else message)
        raise GlyphrecError(
            f"--refine needs a server: {'; '.join(reasons)}. docs/vl-clip.md lists the settings."
        ) from None
