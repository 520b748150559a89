"""The Sync Service: stores what Kits send, once, and delivers it to the Hub. Begin at sync_service/app.py."""
