"""The Sync Service: stores what Kits send, once, and delivers it to the Hub. Begin reading at sync_service/app.py."""
