/* A minimal kernel that boots main.c: multiboot, 64-bit mode, first GiB identity-mapped, vectors and tiles enabled. */
        .section .multiboot, "a"
        .long 0x1BADB002, 0, -0x1BADB002

        .text
        .code32
        .globl start
start:
        movl    $pages + 4096 + 3, pages        /* one table of 1 GiB pages, present and writable ... */
        movl    $0x83, pages + 4096             /* ... one of which is present */
        movl    %cr4, %eax
        orl     $0x40620, %eax                  /* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
        movl    %eax, %cr4
        movl    $pages, %eax
        movl    %eax, %cr3
        movl    $0xC0000080, %ecx               /* EFER: long mode */
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        andl    $~4, %eax                       /* the FPU is not emulated */
        orl     $0x80000003, %eax               /* paging, protected mode, monitor coprocessor */
        movl    %eax, %cr0
        lgdt    table
        ljmp    $8, $in_64_bits

        .code64
in_64_bits:
        xorl    %eax, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movq    $stack_end, %rsp
        xorl    %ecx, %ecx                      /* XCR0: x87, SSE, AVX, AVX-512, tiles and their configuration */
        xorl    %edx, %edx
        movl    $0x600E7, %eax
        xsetbv
        call    main
stop:   hlt
        jmp     stop

        .data
        .align  8
segments:
        .quad   0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF
table:  .word   23
        .long   segments

        .bss
        .align  4096
pages:  .skip   2 * 4096
        .skip   256 << 10
stack_end:
        .section .note.GNU-stack, "", @progbits
