"""The dashboard's server: Prefect's behind our guard, with the kinds of notification that Prefect does not have."""

from flows.server.guarded_server import main
from flows.server.notifications import Mail

BLOCKS = (Mail,)
"""Known to a server whose process has imported them."""

if __name__ == "__main__":
    main()
