"""GAIA in the libraries that compare methods: a module for each, called as the library, imported only by who asks."""
