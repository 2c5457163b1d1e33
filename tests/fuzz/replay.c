// SPDX-License-Identifier: Apache-2.0
/*
 * replay - run a fuzz target over every file of the directories named on the command line, for builds without a fuzzer.
 * Each input lies against a page that nobody may touch, so that one byte of over-read crashes without a sanitizer too.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "../c/packets.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fail(const char *path)
{
	perror(path);
	exit(1);
}

static void replay_file(const char *path)
{
	static uint8_t data[1 << 20];
	FILE *file = fopen(path, "rb");
	struct guarded guarded;
	size_t size;

	if (!file)
		fail(path);
	size = fread(data, 1, sizeof(data), file);
	if (ferror(file))
		fail(path);
	fclose(file);
	guarded = guarded_copy(data, size);
	LLVMFuzzerTestOneInput(guarded.data, size);
	guarded_free(&guarded);
}

static int replay_directory(const char *path)
{
	DIR *directory = opendir(path);
	struct dirent *entry;
	int n = 0;

	if (!directory)
		fail(path);
	while ((entry = readdir(directory))) {
		char file[4096];

		if (entry->d_name[0] == '.')
			continue;
		snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
		fprintf(stderr, "%s\n", file); /* the last one is to blame */
		replay_file(file);
		n++;
	}
	closedir(directory);
	return n;
}

int main(int argc, char **argv)
{
	int n = 0;

	for (int i = 1; i < argc; i++)
		n += replay_directory(argv[i]);
	fprintf(stderr, "%d inputs\n", n);
	return n ? 0 : 1;
}
