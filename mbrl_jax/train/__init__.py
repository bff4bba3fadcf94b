"""The shell: everything that reads, writes, prints or loops. Import its modules by name."""
