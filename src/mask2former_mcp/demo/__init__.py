"""The demo: seeded synthetic images and the main job driven through the server."""
