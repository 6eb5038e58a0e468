"""The intermediate representation: types, operators, graphs and their only writer."""
