"""What people and scripts see: the only floor that knows rich and matplotlib."""
