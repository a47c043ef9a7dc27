/* Checks the start of a text input for a byte order mark to skip, or the signature of something that is not text. */
#include "lib/text/text.h"

/* Signatures of files mistaken for text. UTF-8 text never begins with one of them: if the printable part is a word that
 * could start a text, the signature includes the bytes after it. */
static const struct signature {
    const char *bytes;
    size_t n;
    const char *what, *hint;
} signatures[] = {
    {"\x89RILL", 5, "a Rill stream", ""},
    {"GGUF\1\0\0\0", 8, "a GGUF model", ""},
    {"GGUF\2\0\0\0", 8, "a GGUF model", ""},
    {"GGUF\3\0\0\0", 8, "a GGUF model", ""},
    {"\x93NUMPY", 6, "a NumPy array", ""},
    {"PAR1\x15", 5, "a Parquet file", ""},
    {"ARROW1\0\0", 8, "an Arrow file", ""},
    {"PK\3\4", 4, "a zip archive", ""},
    {"%PDF-", 5, "a PDF document", ""},
    {"\x28\xb5\x2f\xfd", 4, "compressed by zstd", ": decompress it with zstd -dc"},
    {"\x1f\x8b\x08", 3, "compressed by gzip", ": decompress it with gzip -dc"},
    {"\xfd\x37zXZ\0", 6, "compressed by xz", ": decompress it with xz -dc"},
    {"BZh91AY&SY", 10, "compressed by bzip2", ": decompress it with bzip2 -dc"},
    {"\xff\xfe\0\0", 4, "UTF-32", ": convert it with iconv -f UTF-32 -t UTF-8"}, /* must precede UTF-16 */
    {"\0\0\xfe\xff", 4, "UTF-32", ": convert it with iconv -f UTF-32 -t UTF-8"},
    {"\xff\xfe", 2, "UTF-16", ": convert it with iconv -f UTF-16 -t UTF-8"},
    {"\xfe\xff", 2, "UTF-16", ": convert it with iconv -f UTF-16 -t UTF-8"},
};

/* A safetensors file starts with the length of its JSON header in 8 bytes, then the header. */
static bool is_safetensors(const unsigned char *p, size_t n) {
    return n >= 10 && p[5] == 0 && p[6] == 0 && p[7] == 0 && p[8] == '{' && p[9] == '"';
}

int text_begin(const void *data, size_t n, size_t *skip, struct err *e) {
    *skip = text_bom(data, n);
    for (size_t i = 0; i < COUNT_OF(signatures); i++) {
        const struct signature *s = &signatures[i];
        if (n >= s->n && memcmp(data, s->bytes, s->n) == 0)
            return err_set(e, ERR_DATA, "this is %s, not text in UTF-8%s", s->what, s->hint);
    }
    return is_safetensors(data, n) ? err_set(e, ERR_DATA, "this is a safetensors file, not text in UTF-8") : 0;
}
