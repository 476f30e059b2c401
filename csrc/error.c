#include "internal.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[512];

fl_status fl_fail(fl_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return status;
}

const char *fl_last_error(void) { return message; }

const char *fl_version(void) { return "0.1.0"; }
