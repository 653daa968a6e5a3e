"""What is kept in Redis. Every write is one atomic function on the server."""
