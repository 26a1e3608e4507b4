"""Upload a folder to the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from llama.hub import HUB_ID, LOGIN

TRANSPORTS = ("huggingface_hub", "requests", "httpx", "httpx2", "urllib3")


@dataclass(frozen=True)
class Upload:
    """A repository on the Hub that the user's token may write to."""

    api: Any  # huggingface_hub.HfApi
    repository: str
    private: bool

    def send(self, folder: Path) -> str:
        """Make the repository if need be and upload every file; return its address.

        UserError if the Hub refuses or cannot be reached.
        """
        with _errors_as_one_line(self.repository):
            self.api.create_repo(self.repository, private=self.private, exist_ok=True)
            self.api.upload_folder(
                repo_id=self.repository,
                folder_path=str(folder),
                commit_message="Upload the merged model",
            )
        return f"https://huggingface.co/{self.repository}"


def prepare_upload(repository: str, private: bool) -> Upload:
    """Check, before any work is done, that there is a token and the name is one.

    UserError says how to log in.
    """
    from huggingface_hub import HfApi

    if not HUB_ID.fullmatch(repository):
        raise UserError(f"--push {repository}: expected OWNER/NAME")
    api = HfApi()
    with _errors_as_one_line(repository):
        api.whoami()
    return Upload(api, repository, private)


@contextmanager
def _errors_as_one_line(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(f"--push {repository}: not logged in to the Hub; {LOGIN}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(
                f"--push {repository}: the Hub refuses it ({status}): is the token valid, may it "
                f"write, and is the owner right? To change it, {LOGIN}"
            ) from None
        raise UserError(f"--push {repository}: the Hub refuses it ({_first_line(error)})") from None
    except Exception as error:
        if not _is_of_the_transport(error):
            raise
        raise UserError(
            f"--push {repository}: the Hub cannot be reached ({_first_line(error)})"
        ) from error


def _is_of_the_transport(error: Exception) -> bool:
    """True for what the network raises: the library differs between releases of the client."""
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package in TRANSPORTS


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0] else type(error).__name__
