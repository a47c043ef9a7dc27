/*
 * Functions whose result cannot be checked or whose bound cannot be stated. Using one is a compile error
 * (the idea is git's banned.h). Include system headers before this one.
 */
#ifndef RILL_BANNED_H
#define RILL_BANNED_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#pragma GCC poison strcpy strcat strncpy strncat sprintf vsprintf gets atoi atol atoll atof strtok

#endif
