"""What people look at: whether data is whole, what is in it, and how fast it comes."""
