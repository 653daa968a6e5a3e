"""Examples: workers, clients, specialists that are trained here, and the main job."""
