"""What is kept in Redis. Every write is one atomic server-side function; imports messages, errors and settings only."""
