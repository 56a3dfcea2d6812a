"""``python -m api``: the API as a process."""

from api.app import main
from infra.runtime import run

if __name__ == "__main__":
    run(main, "api")
