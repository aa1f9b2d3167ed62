import pytest


@pytest.fixture
def write(tmp_path):
    def write_recipe(text, name="mine.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write_recipe
