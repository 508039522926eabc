"""Visibilities to images, by several imagers behind one interface."""
