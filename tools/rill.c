/* rill: the dispatcher. `rill NAME ...` runs rill-NAME; lib/cli/dispatch.c says where it is looked for. */
#include "lib/cli/cli.h"

int main(int argc, char **argv) {
    return cli_dispatch(argc, argv);
}
