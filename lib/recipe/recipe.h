/*
 * recipe: turns the provenance of a file into the Makefile that rebuilds it. Entries come from a stream and are not
 * trusted. Order of files, each calling only those before it: graph.c (entries to a graph of files and steps), print.c
 * (the graph as a Makefile).
 */
#ifndef RILL_RECIPE_H
#define RILL_RECIPE_H

#include <stdio.h>

#include "lib/base/base.h"

/* Writes the Makefile for these provenance entries (oldest first) to `out`. `target` is the file's name in it; NULL:
 * the name it was written under. ERR_DATA: no entries, or malformed ones, or a name that make cannot express;
 * ERR_USAGE: no name is recorded; ERR_IO: writing failed. */
int recipe_write(const cJSON *entries, const char *target, FILE *out, struct err *e) MUST_CHECK;
/* Returns the target for a file found at `path`: NULL (the name it was written under) if only the folder differs, else
 * path. */
const char *recipe_target(const cJSON *entries, const char *path);

#endif
