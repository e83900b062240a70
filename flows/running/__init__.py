"""Running a recipe: readiness before it, sessions, the dashboard and its server."""
