"""``python -m api``: one instance of the HTTP API."""

from api.app import main
from infra.runtime import run

if __name__ == "__main__":
    run(main, "api")
